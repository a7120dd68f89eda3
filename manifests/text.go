package manifests

import (
	"bytes"
	"regexp"
	"strings"
)

var (
	separator   = regexp.MustCompile(`^---(\s|$)`)
	kindService = regexp.MustCompile(`(?:^|[\s{,-])["']?kind["']?\s*:\s*["']?Service["']?\s*(?:[,}#]|$)`)
	coreVersion = regexp.MustCompile(`(?:^|[\s{,-])["']?apiVersion["']?\s*:\s*["']?v1["']?\s*(?:[,}#]|$)`)
	metadataKey = regexp.MustCompile(`(?:^|[\s{,-])["']?metadata["']?\s*:`)
	nameKey     = regexp.MustCompile(`(?:^|[\s{,-])["']?name["']?\s*:\s*(.*)`)
	namespace   = regexp.MustCompile(`(?:^|[\s{,-])["']?namespace["']?\s*:\s*(.*)`)
	specKey     = regexp.MustCompile(`^\s*["']?spec["']?\s*:`)
	external    = regexp.MustCompile(`(?:^|[\s{,-])["']?type["']?\s*:\s*["']?ExternalName\b`)
)

// scanText finds Services in a text that is no YAML, by the look of its lines: for a person to go to.
func scanText(src Source, o Options, reason string) []Service {
	var services []Service
	document := 1
	lines := strings.Split(string(bytes.ReplaceAll(src.Data, []byte("\r\n"), []byte("\n"))), "\n")
	for i := 0; i <= len(lines); i++ {
		if i == len(lines) || separator.MatchString(lines[i]) {
			services = append(services, scanDocument(src, o, reason, lines[document-1:i], document)...)
			document = i + 1
		}
	}
	return services
}

// scanDocument is scanText for one document, which starts at line first.
func scanDocument(src Source, o Options, reason string, lines []string, first int) []Service {
	var starts []int
	core := false
	for i, line := range lines {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		core = core || coreVersion.MatchString(line)
		if kindService.MatchString(line) {
			starts = append(starts, i)
		}
	}
	if !core {
		return nil
	}
	var services []Service
	for n, start := range starts {
		end := len(lines)
		if n+1 < len(starts) {
			end = starts[n+1]
		}
		s := Service{File: src.Name, Line: first + start, State: ByHand, Reason: reason, Want: string(o.Policy)}
		part, inMetadata := lines[start:end], false
		for i, line := range part {
			inMetadata = inMetadata || metadataKey.MatchString(line)
			if m := nameKey.FindStringSubmatch(line); m != nil && inMetadata && s.Name == "" {
				s.Name = bare(m[1])
			}
			if m := namespace.FindStringSubmatch(line); m != nil && inMetadata && s.Namespace == "" {
				s.Namespace = bare(m[1])
			}
			if specKey.MatchString(line) {
				s.Line, inMetadata = first+start+i, false
			}
		}
		switch text := strings.Join(part, "\n"); {
		case external.MatchString(text):
			s.State, s.Reason, s.Want = Exempt, "ExternalName: it has no addresses", ""
		case strings.Contains(text, key):
			s.State, s.Reason, s.Want = Present, "it has an ipFamilyPolicy: see that the value is "+string(o.Policy), ""
		}
		services = append(services, s)
	}
	return services
}

// bare is a scalar as far as a line tells it.
func bare(text string) string {
	text, _, _ = strings.Cut(text, " #")
	text = strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(text), ","))
	if len(text) > 1 && (text[0] == '"' || text[0] == '\'') && text[len(text)-1] == text[0] {
		text = text[1 : len(text)-1]
	}
	return text
}
