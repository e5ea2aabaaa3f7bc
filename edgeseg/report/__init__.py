"""Documents → something to read: tables for a terminal, one page of HTML, pictures of masks."""
