# slicerMacroBuildScriptedModule(NAME n SCRIPTS s... RESOURCES r... [WITH_GENERIC_TESTS] [WITH_SUBDIR])
#
# What Slicer does with it:
# * a script may be named without its `.py`; a file that does not exist stops the configuration;
# * at build time each file is copied, at its relative path, into the build's folder of scripted modules, or
#   with WITH_SUBDIR into a folder there that is called like the source folder (not like the module);
# * at install time that whole folder goes to the same place below the prefix;
# * the copying targets are called after NAME: a second module of the same name copies nothing, silently.

macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(_module "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(_module_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "slicerMacroBuildScriptedModule does not know: ${_module_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT _module_NAME OR NOT _module_SCRIPTS)
    message(FATAL_ERROR "slicerMacroBuildScriptedModule needs a NAME and SCRIPTS.")
  endif()
  if(TARGET Copy${_module_NAME}PythonScriptFiles)
    message(FATAL_ERROR "A second module called ${_module_NAME}: Slicer would copy none of its files.")
  endif()

  set(_folder ${Slicer_QTSCRIPTEDMODULES_LIB_DIR})
  if(_module_WITH_SUBDIR)
    get_filename_component(_subfolder ${CMAKE_CURRENT_SOURCE_DIR} NAME)
    string(APPEND _folder /${_subfolder})
  endif()

  _standin_copy(Script ${_module_SCRIPTS})
  if(_module_RESOURCES)
    _standin_copy(Resource ${_module_RESOURCES})
  endif()
  install(DIRECTORY ${CMAKE_BINARY_DIR}/${_folder}/ DESTINATION ${_folder} COMPONENT RuntimeLibraries
    USE_SOURCE_PERMISSIONS)

  if(BUILD_TESTING AND _module_WITH_GENERIC_TESTS)
    add_test(NAME py_nomainwindow_qSlicer${_module_NAME}ModuleGenericTest COMMAND Slicer --testing)
  endif()
endmacro()

# Copy files at build time; uses the variables of the macro above.
macro(_standin_copy kind)
  set(_copies)
  foreach(_file IN ITEMS ${ARGN})
    get_filename_component(_extension ${_file} EXT)
    if("${kind}" STREQUAL "Script" AND NOT "${_extension}" MATCHES "py")
      string(APPEND _file .py)
    endif()
    if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${_file})
      message(FATAL_ERROR "slicerMacroBuildScriptedModule was given a file that is not there: ${_file}")
    endif()
    set(_copy ${CMAKE_BINARY_DIR}/${_folder}/${_file})
    add_custom_command(
      OUTPUT ${_copy}
      COMMAND ${CMAKE_COMMAND} -E copy ${CMAKE_CURRENT_SOURCE_DIR}/${_file} ${_copy}
      DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${_file}
      )
    list(APPEND _copies ${_copy})
  endforeach()
  add_custom_target(Copy${_module_NAME}Python${kind}Files ALL DEPENDS ${_copies})
endmacro()

# slicer_add_python_unittest(SCRIPT file [SLICER_ARGS ...] [TESTNAME_PREFIX p]): a test called py_<p><file>.
macro(slicer_add_python_unittest)
  cmake_parse_arguments(_unittest "" "SCRIPT;TESTNAME_PREFIX" "SLICER_ARGS" ${ARGN})
  if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${_unittest_SCRIPT})
    message(FATAL_ERROR "slicer_add_python_unittest was given a file that is not there: ${_unittest_SCRIPT}")
  endif()
  get_filename_component(_unittest_name ${_unittest_SCRIPT} NAME_WE)
  add_test(NAME py_${_unittest_TESTNAME_PREFIX}${_unittest_name} COMMAND Slicer --testing)
endmacro()
