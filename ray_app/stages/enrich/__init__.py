"""Text fields of pins: their own texts plus board titles and engaged queries from user actions."""
