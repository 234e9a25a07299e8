# A minimal stand-in for an installed Slicer: enough of its CMake interface to configure, build and install a
# scripted extension, with Slicer's rules about what is copied where. Not Slicer's code; it was written from a
# description of what Slicer 5.13 does. It is stricter where Slicer is silent.

set(Slicer_VERSION "5.13")
set(Slicer_CMAKE_DIR ${CMAKE_CURRENT_LIST_DIR})
set(Slicer_USE_FILE ${Slicer_CMAKE_DIR}/UseSlicer.cmake)
set(Slicer_EXTENSION_GENERATE_CONFIG ${Slicer_CMAKE_DIR}/ExtensionConfig.cmake)
set(Slicer_EXTENSION_CPACK ${Slicer_CMAKE_DIR}/ExtensionPackage.cmake)

set(Slicer_QTSCRIPTEDMODULES_LIB_DIR lib/Slicer-${Slicer_VERSION}/qt-scripted-modules)
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR ${Slicer_QTSCRIPTEDMODULES_LIB_DIR})
