#pragma once
// What a .cu file was compiled with; see test_build_flags.cpp.
struct BuildFlags {
  long cplusplus;
  bool openmp;
};
BuildFlags build_flags_of_cu_files();
