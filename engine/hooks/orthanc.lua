-- Hands every new radiograph of this Orthanc over to Hilum: writes it into the spool, no more.
-- No program is started and no shell is involved. Named in orthanc.json under "LuaScripts".

-- The one line to look at. The user Orthanc runs as has to own this folder.
local SPOOL = os.getenv('HILUM_SPOOL') or '/var/lib/hilum/spool'

-- What Hilum reads; all else (CT, reports, presentation states) stays in Orthanc only.
local MODALITIES = { CR = true, DX = true, RF = true }

local function plain(value)
  -- A tag may be missing, padded with blanks or, where a file is damaged, no text.
  if type(value) ~= 'string' then
    return ''
  end
  return value:upper():match('^[%s%z]*(.-)[%s%z]*$')
end

local function wanted(tags)
  -- Hilum's own reports and pictures come back into this Orthanc: never again from the start.
  if plain(tags.Manufacturer) == 'HILUM' then
    return false
  end
  if plain(tags.SeriesDescription):sub(1, 12) == 'HILUM RESULT' then
    return false
  end
  local modality = plain(tags.Modality)
  return modality == '' or MODALITIES[modality] == true
end

local function hand_over(id)
  local picture = RestApiGet('/instances/' .. id .. '/file')
  if not picture then
    return 'Orthanc does not give the picture'
  end
  -- Under a hidden name until it is whole: the worker must not see half a picture.
  local part = SPOOL .. '/incoming/.' .. id .. '.part'
  local file, reason = io.open(part, 'wb')
  if not file then
    return reason
  end
  local written, why = file:write(picture)
  local closed, late = file:close()
  if not (written and closed) then
    os.remove(part)
    return why or late
  end
  local moved, obstacle = os.rename(part, SPOOL .. '/incoming/' .. id .. '.dcm')
  if not moved then
    os.remove(part)
    return obstacle
  end
  return nil
end

-- Another script may have this function too: then both are called.
local others = OnStoredInstance

function OnStoredInstance(id, tags, metadata, origin)
  if others then
    others(id, tags, metadata, origin)
  end
  if wanted(tags) then
    local fine, problem = pcall(hand_over, id)
    if not fine or problem then
      -- The picture is still in Orthanc: see "handing over again" in README.md.
      print('Hilum: a picture was not handed over: ' .. tostring(problem))
    end
  end
end
