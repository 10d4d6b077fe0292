"""What `triage batch` is made of."""
