"""What operators write: settings of processes (environment) and catalogues of the domain (YAML files), checked once at the door."""
