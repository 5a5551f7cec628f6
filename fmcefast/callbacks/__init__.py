"""ConvergenceRecorder as a callback of other libraries' trainers, one module a library."""
