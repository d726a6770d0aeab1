"""HTML reports: report.html, its parts, and the comparison of two reports."""
