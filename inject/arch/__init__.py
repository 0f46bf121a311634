"""What each architecture needs to know for injection; one file each."""
