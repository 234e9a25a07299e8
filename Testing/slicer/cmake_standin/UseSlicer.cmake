# Included by the extension before its modules: what it says about itself must be there by now.

foreach(name HOMEPAGE CONTRIBUTORS DESCRIPTION ICONURL SCREENSHOTURLS DEPENDS)
  if("${EXTENSION_${name}}" STREQUAL "")
    message(FATAL_ERROR "EXTENSION_${name} is not set before Slicer_USE_FILE is included.")
  endif()
endforeach()

set(EXTENSION_NAME ${PROJECT_NAME})
include(CTest) # defines BUILD_TESTING, on unless it is switched off

include(${Slicer_CMAKE_DIR}/ScriptedModule.cmake)
