"""What `triage doctor` looks at. A check's rule is a plain function from what was seen to findings; looking is apart."""
