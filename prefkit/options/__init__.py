"""What options are made of: fields, checks, help, YAML and flags. Imports nothing heavy."""
