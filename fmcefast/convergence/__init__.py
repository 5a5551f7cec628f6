"""When a loss has converged, and the epochs that divide its convergence into phases ([FMCE] IV-B and IV-C)."""
