"""What people look at: figures and one offline HTML page."""
