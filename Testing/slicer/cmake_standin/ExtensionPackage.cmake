# Included last. Slicer describes the package here; it stops without a readme and a licence.

if(NOT "${EXTENSION_NAME}" STREQUAL "${PROJECT_NAME}")
  message(FATAL_ERROR "The extension '${EXTENSION_NAME}' is not called like its project '${PROJECT_NAME}'.")
endif()
foreach(file README.md LICENSE.txt)
  if(NOT EXISTS ${CMAKE_SOURCE_DIR}/${file})
    message(FATAL_ERROR "The extension has no ${file}.")
  endif()
endforeach()

file(WRITE ${CMAKE_BINARY_DIR}/description.txt
  "depends ${EXTENSION_DEPENDS}\niconurl ${EXTENSION_ICONURL}\nscreenshoturls ${EXTENSION_SCREENSHOTURLS}\n")
