# cmake -DNM=nm -DLEVEL=avx512 -DOBJECTS="a.o|b.o" -P CheckLevel.cmake
#
# Every symbol that the objects of a level define for others must have the level in its (mangled) name:
# of anything else, e.g. a function of std::, the linker may keep this copy for all levels. Nor may a
# level have code that runs when the module is loaded, before it is chosen.
string(REPLACE "|" ";" OBJECTS "${OBJECTS}")
string(LENGTH ${LEVEL} length)
set(strangers "")
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND ${NM} -P ${object} OUTPUT_VARIABLE table RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "${NM} cannot read ${object}")
  endif()
  string(REGEX MATCHALL "[^\n]+" lines "${table}")
  foreach(line IN LISTS lines)
    # Types: U is used only, small letters are the object's own but for u. DW.ref: where an object
    # finds the handler of exceptions.
    if((line MATCHES "^[^ ]+ [A-TV-Zu]" AND NOT line MATCHES "${length}${LEVEL}"
        AND NOT line MATCHES "^_?DW\\.ref\\.") OR line MATCHES "^_+GLOBAL__(sub_)?I")
      string(REGEX REPLACE " .*" "" name "${line}")
      list(APPEND strangers ${name})
    endif()
  endforeach()
endforeach()
if(strangers)
  list(REMOVE_DUPLICATES strangers)
  string(REPLACE ";" "\n  " strangers "${strangers}")
  message(FATAL_ERROR "defined for ${LEVEL}, but not in its namespace:\n  ${strangers}")
endif()
