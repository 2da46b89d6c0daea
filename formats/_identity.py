"""What in a text looks like a person, a study or a machine: the tripwires behind the allow-list.

A net with holes: it cannot know a name when it sees one. The allow-list is the protection, this
catches what slips into its free texts by accident.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Literal
from urllib.parse import unquote

__all__ = ["find_identity"]

# ---- Addresses that are public on purpose ------------------------------------------------------

_URL = re.compile(r"https?://[^\s<>\"']+", re.IGNORECASE)
_URL_PARTS = re.compile(r"https?://([^/]+)(/.*)?", re.IGNORECASE | re.DOTALL)
_DOI = re.compile(r"(?<![\w.])(?:doi:\s*)?10\.\d{4,9}/[^\s<>\"']+", re.IGNORECASE)
_ARXIV = re.compile(r"\barxiv:\s*\d{4}\.\d{4,5}(?:v\d+)?(?!\d)", re.IGNORECASE)
# also "anna(at)x.org"; smb:, ftp:, s3: and the like are no public addresses
_E_MAIL = re.compile(
    r"[^\s@<>]+@[^\s@<>]+\.[^\s@<>]+|\w\s?[\[({]\s?(?:at|@)\s?[\])}]\s?\w|\bmailto:",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"\b(?!https?:)[a-z][a-z0-9+-]{1,9}://", re.IGNORECASE)
# of classes, sources and titles only: citations name journals' and people's sites
_HOSTS = re.compile(
    r"\bwww\.\w|(?<![\w.])[\w-]{2,}(?:\.[\w-]+)*\.(?:org|com|net|edu|gov)\b|"
    r"(?<![\w.])[\w-]+\.[\w-]{3,}\.(?:pl|de|fr|es|uk|nl|dk|fi|cz|sk|hu|pt|ro|eu|ca|au|jp|cn|kr|"
    r"br|ru|ua|tr)\b",
    re.IGNORECASE,
)
_TITLES = re.compile(r"\b(?:Dr|Prof|Mr|Mrs|Ms|Herr|Frau)\b\.?\s(?=[^\W\d_a-z])")
_MACHINES = (
    re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.]*\d)"),
    re.compile(r"(?<![\w:])(?:[0-9a-f]{1,4}:){5,7}[0-9a-f]{1,4}(?![\w:])", re.IGNORECASE),
    re.compile(r"(?<![\w:])f[de][0-9a-f]{2}:[0-9a-f:]*:", re.IGNORECASE),
    re.compile(r"(?<![\w:])[0-9a-f]{1,4}(?::[0-9a-f]{1,4})+::", re.IGNORECASE),
    re.compile(r"(?<![\w-])(?:[0-9a-f]{2}-){5}[0-9a-f]{2}(?![\w-])", re.IGNORECASE),
    re.compile(r"(?<![\w.])[0-9a-f]{4}\.[0-9a-f]{4}\.[0-9a-f]{4}(?![\w.])", re.IGNORECASE),
    re.compile(r"\b(?:DESKTOP|LAPTOP)-[A-Z0-9]{7}\b"),
    re.compile(r"\blocalhost\b", re.IGNORECASE),
    re.compile(
        r"[^\W_][\w-]*\.(?:local|localdomain|lan|internal|intranet|intern|intra|corp|home)\b",
        re.IGNORECASE,
    ),
    re.compile(r"\b(?:pacs|vna|orthanc|dcm4chee)[\w-]*\.[^\W\d_]", re.IGNORECASE),
)

# ---- Numbers -----------------------------------------------------------------------------------

_UID = re.compile(r"(?<![\d.])[0-2](?:\.\d+){4,}")
_DIGITS = re.compile(r"\d(?:[-\s._]{0,2}\d){6,}")
_PAGES_OR_YEARS = re.compile(r"(\d{4})-(\d{4})")
_YEARS = re.compile(r"(?:19|20)\d\d(?:[-\s._]{1,2}(?:19|20)\d\d)+")
_PHONE = re.compile(r"\+\s?\d(?:[\s()./-]{0,3}\d){6,}")
# as in Czech and Slovak birth numbers; other slashes part alternatives ("1/2/3")
_BIRTH_NUMBER = re.compile(r"(?<!\d)\d{6}/\d{3,5}(?!\d)")
_NO_YEAR = r"(?!(?:19|20)\d\d(?!\d))"
# a shorter number where a word says whose it is; "acc 0.91" and "patients 2010-2013" are none
_NUMBER_OF_SOMEBODY = (
    re.compile(
        rf"(?<![^\W_])(?:mrn|pesel|ssn|pid|acc(?:ession)?)(?:\s?(?:id|no|nr|number))?"
        rf"[\s:=#._-]{{0,3}}{_NO_YEAR}(?:[a-z]{{1,3}}-?)?\d{{3}}",
        re.IGNORECASE,
    ),
    re.compile(
        r"(?<![^\W_])(?:patient|study|exam|case)[\s_-]{0,2}(?:id|no|nr|number)\b"
        r"[\s:=#._-]{0,3}[a-z]{0,3}-?\d",
        re.IGNORECASE,
    ),
    re.compile(rf"(?<![^\W_])pat(?:ient)?[\s:=#_-]{{0,2}}{_NO_YEAR}\d{{3}}", re.IGNORECASE),
    re.compile(r"(?<![^\W_])(?:dob|date of birth)\b\W{0,3}\d", re.IGNORECASE),
    re.compile(r"\bpatient'?s?[\s_-]{0,2}name\b", re.IGNORECASE),
)
_TELEPHONE = re.compile(
    r"(?<![^\W_])(?:tel|telefon|phone|fax)\b[.:]?\s?[(+]?\d|\(0\d{1,5}\)\s?\d{2}", re.IGNORECASE
)
# SHA-1, SHA-256 and MD5 as hexadecimal digits or in base 64, UUIDs
_HASHES = (
    re.compile(
        r"(?<![^\W_])(?=[a-f]*[0-9])(?=[0-9]*[a-f])[0-9a-f]{16,}(?![^\W_])|"
        r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}",
        re.IGNORECASE,
    ),
    re.compile(r"(?<![\w+/])[A-Za-z0-9+/]{20,}={1,2}(?!\w)"),
)
# two numbers so close together are pages or years, not halves of one number
_SPAN = 100

# ---- Dates -------------------------------------------------------------------------------------

# Without accents, in any case; left out: "set", "out", "ago", "lug" and the like, which are words.
_MONTHS = (
    "jan(?:uary|uar|uari)?|januar[ay]|feb(?:ruary|ruar|ruari)?|apr(?:il|ilie|ilis)?|june?|july?|"
    "aug(?:ust|usti|ustus|usztus)?|sept?(?:ember|embre|embrie)?|october|octobre|octombrie|oct|"
    "nov(?:ember|embre|embrie)?|dec(?:ember|embre|embrie)?|"
    "janner|marz|mrz|mai|juni|juli|okt(?:ober|obra)?|dez(?:ember)?|"  # German, northern
    "janv(?:ier)?|fevr(?:ier)?|avr(?:il)?|juin|juil(?:let)?|aout|"  # French
    "enero|ene|febrero|marzo|abril|abr|mayo|junio|julio|agosto|sep?tiembre|octubre|noviembre|"
    "diciembre|dic|gennaio|febbraio|aprile|maggio|giugno|luglio|settembre|ottobre|dicembre|"
    "janeiro|fevereiro|marco|maio|junho|julho|setembro|outubro|novembro|dezembro|"
    "maart|mrt|mei|marts|maj|desember|"  # Dutch, Danish, Swedish, Norwegian
    "stycz(?:en|nia|niu)|luty|lutego|lutym|marzec|marca|marcu|kwie(?:cien|tnia|tniu)|maja|maju|"
    "czerw(?:iec|ca|cu)|lip(?:iec|ca|cu)|sierp(?:ien|nia|niu)|wrze(?:sien|snia|sniu)|"
    "pazdziernik\\w*|listopad\\w*|grud(?:zien|nia|niu)|"
    "leden|ledna|unora|brezen|brezna|duben|dubna|kveten|kvetna|cerven|cervna|cervence|srpen|"
    "srpna|rijen|rijna|prosinec|prosince|"  # Czech
    "marcius|majus|junius|julius|szept(?:ember)?|ianuarie|februarie|martie|iunie|iulie|noiembrie|"
    "(?:tammi|helmi|maalis|huhti|touko|kesa|heina|elo|syys|loka|marras|joulu)kuu\\w*|"
    "ocak|subat|nisan|mayis|haziran|temmuz|agustos|eylul|ekim|kasim|aralik|"  # Turkish
    "янв\\w*|фев\\w*|март\\w?|апр\\w*|ма[ияй]|июн\\w*|июл\\w*|авг\\w*|сен\\w*|окт\\w*|ноя\\w*|"
    "дек\\w*"
)
_NOT_BEFORE = r"(?<![^\W_])(?<![A-Za-z]-)"  # the 19 of COVID-19 is no day
_NO_LETTER = r"(?![^\W\d_])"
_TWO_DIGITS = r"(?:0[1-9]|[12]\d|3[01])"
_NUMBER = r"(?:0?[1-9]|[12]\d|3[01])"
_DAY = rf"{_NUMBER}(?:st|nd|rd|th|er|\.)?"
_GAP = r"[-./_,' ]{0,3}(?:(?:of|de|di|do) )?"
_YEAR = r"(?:19|20)\d\d(?!\d)"
# abbreviations of medicine as well: optical coherence tomography, disseminated intravascular
# coagulation, Magnetresonanztomographie, Mycobacterium avium-intracellulare, a resection
_SAFE = rf"(?!(?:OCT|DIC|MRT|MAI|APR)(?![^\W\d_]))(?i:{_MONTHS})"
# English words too: months only where a capital, or a day and a year, say so
_CAPITAL = "(?:May|MAY|March|MARCH|Mar|MAR)"
_MONTH = rf"(?<![^\W\d_])(?:{_SAFE}|{_CAPITAL})\.?{_NO_LETTER}"
_ANY_MONTH = rf"(?<![^\W\d_])(?i:{_MONTHS}|may|march|mar|mars)\.?{_NO_LETTER}"
_ROMAN = "(?:I{1,3}|IV|VI{0,3}|IX|XI{0,2})"
_HAN_NUMBER = r"[\d〇零一二三四五六七八九十]{1,4}"
_NOT_A_SIZE = r"(?!\s*(?:[cmµ]m|m?g|kg|kv|mas|ml|%)(?![^\W_]))"
_DATES = tuple(
    re.compile(pattern)
    for pattern in (
        # 2019-03, 2019/3, 2019/03/07, 2019.3.7, 201903; a range of years such as 2019-2021 is none
        r"(?<!\d)(?:19|20)\d\d\s?[-/.]\s?(?:0?[1-9]|1[0-2])(?!\d)",
        r"(?<!\d)(?:19|20)\d\d[_ ](?:0[1-9]|1[0-2])(?!\d)",
        r"(?<!\d)(?:19|20)\d\d\s?[-/._ ]\s?\d{1,2}\s?[-/._ ]\s?\d{1,2}(?!\d)",
        r"(?<!\d)(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])?(?!\d)",
        # 7.3.2019, 7. 3. 2019, 03/2019
        rf"(?<!\d)\d{{1,2}}\s?[-/._ ]\s?\d{{1,2}}\s?[-/._ ]\s?{_YEAR}",
        rf"(?<!\d)(?<![A-Za-z]-)(?:0?[1-9]|1[0-2])[-/.]{_YEAR}",
        # 07/03/19, 7.3.19, 07-03-19; not v1.2.10, 5-10-15, 10/12/15 mm
        rf"(?<![\w.]){_NUMBER}([/.]){_NUMBER}\1\d\d(?!\w){_NOT_A_SIZE}",
        rf"(?<![\w.]){_TWO_DIGITS}([-_ ]){_TWO_DIGITS}\1\d\d(?!\w){_NOT_A_SIZE}",
        # 12 Mar 2019, 12Mar2019, 12-mar-19, 12 marca 1956, 12. März 1956, 12 IV 1956
        rf"{_NOT_BEFORE}{_DAY}{_GAP}{_ANY_MONTH}{_GAP}{_YEAR}",
        rf"{_NOT_BEFORE}{_DAY}([-/._]){_ANY_MONTH}\1\d\d(?!\d)",
        rf"{_NOT_BEFORE}{_DAY}([-/._])[^\W\d_]{{3,12}}\1{_YEAR}",
        rf"{_NOT_BEFORE}{_DAY}{_GAP}{_ROMAN}{_NO_LETTER}{_GAP}{_YEAR}",
        # March 2019, Mar-2019, March 7, 2019, 2019-Mar-12, 2019 March
        rf"{_MONTH}{_GAP}(?:{_DAY}{_GAP})?{_YEAR}",
        rf"(?<![^\W\d_])(?i:may|march|mars?)\.?[-./_, ]{{0,3}}(?:{_DAY}[-./_, ]{{1,3}})?{_YEAR}",
        rf"(?<!\d){_YEAR}{_GAP}{_MONTH}",
        rf"(?<!\d){_YEAR}{_GAP}{_ANY_MONTH}{_GAP}{_DAY}(?!\d)",
        # 7 March, 12 Dec, Dec 12
        rf"{_NOT_BEFORE}{_DAY}{_GAP}{_MONTH}",
        rf"{_MONTH}[-./ ]{{1,2}}{_DAY}(?![\w-])",
        # March '19
        rf"{_ANY_MONTH}\s?'\d\d(?!\d)",
        # 1956年3月12日, 3月12日, 一九五六年三月
        rf"{_HAN_NUMBER}\s*[年년]\s*{_HAN_NUMBER}\s*[月월]",
        rf"{_HAN_NUMBER}\s*[月월]\s*{_HAN_NUMBER}\s*[日일号號]",
        # weeks, quarters and days of a year: 2019-W12, week 12 of 2019, Q1 2019, 2019Q1, day 66 of
        # 2019
        r"(?<!\d)(?:19|20)\d\d[- ]?(?:W[0-5]\d|Q[1-4])(?!\d)",
        rf"(?i:(?<![^\W_])(?:weeks?|kw|cw|wk)\s?\d{{1,2}}[-\s/.,]{{0,2}}(?:of )?){_YEAR}",
        rf"(?<![^\W_])[WQ][0-5]?\d[-\s/]{{0,2}}{_YEAR}",
        rf"(?i:(?<![^\W_])day\s\d{{1,3}}\s(?:of\s)?){_YEAR}",
        # times of day: 14:23:11, at 14:23, 2:05 pm, 14:23 Uhr; 16:10 and 1:10 are ratios
        r"(?<![\d:.])(?:[01]?\d|2[0-3]):[0-5]\d:[0-5]\d(?![\d:])",
        r"(?i:(?<![^\W_])(?:at|um|om)\s(?:[01]?\d|2[0-3]):[0-5]\d(?!\d))",
        r"(?i:(?<![\d:.])(?:[01]?\d|2[0-3]):[0-5]\d\s?(?:[ap]\.?m|uhr|h)(?![^\W_]))",
    )
)
# a day, a word that is not plain ASCII (nor Chinese or Korean), a year: a month of any language
_FOREIGN_DATE = re.compile(
    rf"{_NOT_BEFORE}{_DAY}{_GAP}(?=\w*[^\x00-\x7f])[^\W\d_\u2e80-\u9fff\uac00-\ud7af]{{2,15}}"
    rf"{_GAP}{_YEAR}"
)

# ---- Ages --------------------------------------------------------------------------------------

_OLD = r"(?:9\d|1[0-4]\d)"
_AGES = (
    re.compile(
        rf"(?<![\d.,]){_OLD}[\s-]*(?:years?|yrs?|y\W?o|lat|letni\w*|let|let[yaeé]\w*|jahre?n?|"
        rf"jahrig\w*|ans|anos?|anni|jaar|jarige?|ars?|arig\w*|rocni\w*|vuotias|vuotta|eves|лет|"
        rf"года?|years?old)(?!\w)",
        re.IGNORECASE,
    ),
    re.compile(rf"(?<!\d){_OLD}\s*(?:歳|岁|歲|才|세|살)"),
    # 93 y; not 90Y, an isotope. 093Y as in DICOM (PS3.5, 6.2, AS)
    re.compile(r"(?<![\d.,])(?:9[1-9]|1[0-4]\d)\s?y(?!\w)", re.IGNORECASE),
    re.compile(r"(?<!\d)(?:09\d|1[0-4]\d)Y(?!\w)"),
    re.compile(r"\bninety(?:[\s-](?:one|two|three|four|five|six|seven|eight|nine))?[\s-]years?\b"),
    re.compile(
        rf"\b(?:aged?|alter|wiek|edad|eta|leeftijd|alder|возраст)\b[\s:=]{{0,3}}{_OLD}\b",
        re.IGNORECASE,
    ),
)

# ---- Files -------------------------------------------------------------------------------------

_PATHS = (
    re.compile(r"\\"),
    re.compile(r"(?:^|[\s\"'(=:])(?:~?/|\.\.?/)[\w.~-]"),
    re.compile(r"\b[A-Za-z]:[\\/]"),
    re.compile(r"\bfile:", re.IGNORECASE),
    re.compile(r"(?:^|[\s\"'(=:])//\w"),
    re.compile(r"(?<![^\W_])(?:home|users|mnt|srv|tmp)/[\w.~-]+/", re.IGNORECASE),
    re.compile(
        r"(?<=\w)\.(?:dcm|dicom|ima|png|jpe?g|jp2|j2k|webp|svg|tiff?|bmp|nii|nrrd|mh[ad]|gz|zip|tar|"
        r"7z|csv|tsv|txt|json|xml|html?|hl7|pdf|docx?|odt|rtf|xlsx?|np[yz]|h5|hdf5|parquet|pkl|"
        r"sqlite|db|log|safetensors|hilum)\b",
        re.IGNORECASE,
    ),
)
# "AP/PA/LL" are alternatives; with a number in it, it is a path
_SLASHED = re.compile(r"[^\s/]+/[^\s/]+/[^\s]+")
_NUMBERED = re.compile(r"[^\W\d]-?\d{3,}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

Kind = Literal["text", "linked", "citation", "url"]


def find_identity(text: str, *, kind: Kind = "text") -> str | None:
    """Say what in a text looks like it identifies a person, a study or a machine.

    Dashes, blanks, digits and full-width letters of every script are taken for the plain ones.

    Parameters
    ----------
    text : str
        Any text.
    kind : {"text", "linked", "citation", "url"}
        A ``linked`` text may hold public web addresses, a ``citation`` DOIs and arXiv numbers
        too; a ``url`` is one address, in which slashes and dates of a page are no finding.

    Returns
    -------
    str or None
        A clause such as ``a date finer than a year``, or None.
    """
    if _CONTROL.search(text):
        return "a control character"
    plain = _plain(text)
    if "^" in plain:
        return "a '^', as in DICOM person names"
    if _E_MAIL.search(plain):
        return "an e-mail address"
    if kind == "url":
        return _in_address(plain)
    if _SCHEME.search(plain):
        return "an address that is not public"
    if kind != "text":
        for address in _URL.findall(plain):
            found = _in_address(address.rstrip(".,;)?!"))
            if found:
                return found
        plain = _URL.sub(" ", plain)
        if kind == "citation":
            plain = _ARXIV.sub(" ", _DOI.sub(" ", plain))
    elif _URL.search(plain):
        return "a web address (about.url and about.attribution are for those)"
    elif _HOSTS.search(plain):
        return "the name of a host (about.url and about.attribution are for public ones)"
    elif _TITLES.search(plain):
        return "a title, as before a person's name"
    return _in_text(plain)


def _plain(text: str) -> str:
    """Fold what looks alike: NFKC, ASCII digits, one dash, one blank, nothing invisible."""
    folded = []
    for character in unicodedata.normalize("NFKC", text):
        category = unicodedata.category(character)
        if category == "Nd":
            folded.append(str(unicodedata.decimal(character)))
        elif category == "Pd" or character in "\u2212\u2043":
            folded.append("-")
        elif category == "Zs":
            folded.append(" ")
        elif character in "\u2044\u2215":
            folded.append("/")
        elif category != "Cf":
            folded.append(character)
    return "".join(folded)


def _without_accents(text: str) -> str:
    if text.isascii():
        return text
    parts = unicodedata.normalize("NFKD", text)
    kept = "".join(c for c in parts if not unicodedata.combining(c))
    return unicodedata.normalize("NFC", kept)  # Korean syllables are put together again


def _in_text(plain: str) -> str | None:
    bare = _without_accents(plain)
    if _UID.search(bare):
        return "a DICOM UID"
    if any(pattern.search(bare) for pattern in _DATES) or _FOREIGN_DATE.search(plain):
        return "a date finer than a year"
    if any(pattern.search(bare) for pattern in _MACHINES):
        return "the address of a machine"
    if any(_long_numbers(bare)) or _BIRTH_NUMBER.search(bare):
        return "a number of seven or more digits"
    if any(pattern.search(bare) for pattern in _NUMBER_OF_SOMEBODY):
        return "a number or name of somebody"
    if _PHONE.search(bare) or _TELEPHONE.search(bare):
        return "a telephone number"
    if any(pattern.search(bare) for pattern in _HASHES):
        return "a hash or key"
    if any(pattern.search(bare) for pattern in _AGES):
        return "an age over 89"
    if any(pattern.search(bare) for pattern in _PATHS) or any(
        _is_path(match[0]) for match in _SLASHED.finditer(bare)
    ):
        return "a file name or path"
    return None


def _in_address(plain: str) -> str | None:
    """Look at a web address: a public host, and no number in it but that of a DOI."""
    parts = _URL_PARTS.fullmatch(unquote(plain))
    if parts is None:
        return "no web address"
    host, path = parts[1], parts[2] or ""
    if any(mark in plain for mark in "?#@"):
        return "a web address with ?, # or @, which may lead to somebody"
    if "." not in host or ":" in host or any(p.search(host) for p in _MACHINES):
        return "the address of a machine that is not public"
    if host.lower() in ("doi.org", "dx.doi.org", "www.doi.org") or "/doi/" in path.lower():
        path = _DOI.sub(" ", path)
    rest = f"{host} {path}"
    if _UID.search(rest):
        return "a DICOM UID"
    if any(_long_numbers(rest)):
        return "a number of seven or more digits (of a public record, give its DOI's address)"
    return None


def _long_numbers(text: str) -> Iterator[str]:
    """Yield runs of seven or more digits, across what people write between them."""
    for match in _DIGITS.finditer(text):
        run = match[0]
        pages = _PAGES_OR_YEARS.fullmatch(run)
        if pages and 0 < int(pages[2]) - int(pages[1]) < _SPAN:
            continue
        if not _YEARS.fullmatch(run):
            yield run


def _is_path(slashed: str) -> bool:
    has_letter = re.search(r"[^\W\d_]", slashed) is not None
    return bool(_NUMBERED.search(slashed)) or (
        has_letter and re.search(r"\d{4,}", slashed) is not None
    )
