"""What people look at: report.html, its parts, and two reports side by side."""
