"""Speed: each module measures one part against its competitors, after checking that all give the same result."""
