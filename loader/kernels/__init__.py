"""Kernels: CUDA C++ sources that are also the CPU library's sources, and what compiles and loads them."""
