"""Has a loss converged, and which epochs mark the phases on the way? ([FMCE] IV-B and IV-C)"""
