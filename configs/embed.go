package configs

import _ "embed"

// Sample is a configuration with every key and a word about each.
//
//go:embed qbackup.yaml
var Sample []byte
