# Included after the modules. Slicer writes a file here by which other extensions find this one.

if("${EXTENSION_NAME}" STREQUAL "")
  message(FATAL_ERROR "Slicer_EXTENSION_GENERATE_CONFIG is included before Slicer_USE_FILE.")
endif()
