"""Wire languages: bytes to commands, publications and ends to bytes. Pure: no I/O, no Trio."""
