package s3

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"gopkg.in/ini.v1"
)

// profile is one section of the AWS configuration files, of which the credentials
// file wins over the config file.
type profile struct {
	name            string
	named           bool // AWS_PROFILE asks for it
	configFile      string
	credentialsFile string
	config, keys    *ini.Section // nil when the file or section is missing
	err             error        // a file is there and cannot be read
}

func readProfile(getenv func(string) string) profile {
	p := profile{name: getenv("AWS_PROFILE"), configFile: getenv("AWS_CONFIG_FILE"), credentialsFile: getenv("AWS_SHARED_CREDENTIALS_FILE")}
	p.named = p.name != ""
	if !p.named {
		p.name = "default"
	}
	folder := filepath.Join(getenv("HOME"), ".aws")
	if p.configFile == "" {
		p.configFile = filepath.Join(folder, "config")
	}
	if p.credentialsFile == "" {
		p.credentialsFile = filepath.Join(folder, "credentials")
	}
	section := "profile " + p.name // in the config file only
	if p.name == "default" {
		section = p.name
	}
	p.config = p.read(p.configFile, section)
	p.keys = p.read(p.credentialsFile, p.name)
	return p
}

func (p *profile) read(path, section string) *ini.Section {
	f, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		p.err = err
		return nil
	}
	parsed, err := ini.LoadSources(ini.LoadOptions{SkipUnrecognizableLines: true, AllowNestedValues: true}, f)
	if err != nil {
		p.err = err
		return nil
	}
	if !parsed.HasSection(section) {
		return nil
	}
	return parsed.Section(section)
}

func (p *profile) value(key string) string {
	for _, s := range []*ini.Section{p.keys, p.config} {
		if s != nil && s.HasKey(key) {
			return s.Key(key).String()
		}
	}
	return ""
}

// usable reports whether the profile can yield credentials.
func (p *profile) usable() bool {
	for _, key := range []string{"aws_access_key_id", "credential_process", "sso_session", "sso_start_url"} {
		if p.value(key) != "" {
			return true
		}
	}
	return false
}
