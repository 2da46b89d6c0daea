# Two programs say the same of every file: exit code, output and errors.
#
#     cmake -D ONE=program -D OTHER=command;words -D FILES=file;... -P compare.cmake
set(n 0)
foreach(file IN LISTS FILES)
  execute_process(COMMAND ${ONE} ${file}
    RESULT_VARIABLE code OUTPUT_VARIABLE text ERROR_VARIABLE errors)
  execute_process(COMMAND ${OTHER} ${file}
    RESULT_VARIABLE other_code OUTPUT_VARIABLE other_text ERROR_VARIABLE other_errors)
  if(NOT "${code}${text}${errors}" STREQUAL "${other_code}${other_text}${other_errors}")
    message(FATAL_ERROR "${file}: ${OTHER} exits with ${other_code}, ${ONE} with ${code}\n"
      "${other_text}${other_errors}")
  endif()
  math(EXPR n "${n} + 1")
endforeach()
if(n LESS 50)
  message(FATAL_ERROR "only ${n} files")
endif()
message("${n} files: ${OTHER} says what ${ONE} says")
