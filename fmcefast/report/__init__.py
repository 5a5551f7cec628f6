"""The report of a run: figures and one offline HTML page."""
