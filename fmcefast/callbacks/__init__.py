"""ConvergenceRecorder as a callback of other libraries' trainers, one module for each."""
