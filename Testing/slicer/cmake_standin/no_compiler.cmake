# Toolchain for the packaging test: `project(DiffeoReg)` asks for C and C++ compilers, as Slicer's template does,
# and the extension compiles nothing. So the test runs where there is no compiler, and saves their checks.

foreach(language C CXX)
  set(CMAKE_${language}_COMPILER ${CMAKE_COMMAND})
  set(CMAKE_${language}_COMPILER_ID_RUN TRUE)
  set(CMAKE_${language}_COMPILER_FORCED TRUE)
  set(CMAKE_${language}_COMPILER_WORKS TRUE)
endforeach()
