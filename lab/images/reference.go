// SPDX-License-Identifier: Apache-2.0

package images

import (
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// Reference is a normalised image reference: "nginx" is docker.io/library/nginx with tag latest.
type Reference struct {
	Repository string // with registry: docker.io/library/nginx
	Tag        string // "" when only a digest was given
	Digest     string // "sha256:…", or ""
}

// String is the reference in full.
func (r Reference) String() string {
	s := r.Repository
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest
	}
	return s
}

// Parse normalises a reference as Docker does.
func Parse(ref string) (Reference, error) {
	rest, digest, _ := strings.Cut(ref, "@")
	parsed, err := name.ParseReference(ref)
	if err != nil {
		low := strings.ToLower(ref) // tags may have capitals, but the hint is about the name
		if _, lerr := name.ParseReference(low); lerr == nil {
			return Reference{}, fmt.Errorf("image reference %q: a repository's name is lower-case: %s", ref, low)
		}
		return Reference{}, fmt.Errorf("image reference %q: %w", ref, err)
	}
	r := Reference{Repository: canonical(parsed.Context()), Digest: digest}
	if digest == "" {
		r.Tag = parsed.Identifier()
	} else if tagged, err := name.NewTag(rest); err == nil && strings.HasSuffix(rest, ":"+tagged.TagStr()) {
		r.Tag = tagged.TagStr()
	}
	return r, nil
}

// canonical names Docker's registry by its public name.
func canonical(r name.Repository) string {
	registry := r.RegistryStr()
	if registry == name.DefaultRegistry {
		registry = "docker.io"
	}
	return registry + "/" + r.RepositoryStr()
}

const anyTag = ":*"

func isPattern(p string) bool { return strings.HasSuffix(p, anyTag) }

// ParsePattern normalises a reference that may end in ":*" for any tag.
func ParsePattern(ref string) (string, error) {
	repo, any := strings.CutSuffix(ref, anyTag)
	r, err := Parse(repo)
	if err != nil {
		return "", err
	}
	if r.Digest != "" {
		return "", fmt.Errorf("image reference %q: an image is loaded under a tag, a digest follows from its content", ref)
	}
	if any {
		if r.String() != r.Repository+":latest" || strings.HasSuffix(repo, ":latest") {
			return "", fmt.Errorf("image reference %q: has a tag before %q", ref, anyTag)
		}
		return r.Repository + anyTag, nil
	}
	return r.String(), nil
}

// matchesName reports whether a pattern of the store covers the name and tag of r. A reference by digest alone is
// covered by every tag of its repository: the digest decides.
func (r Reference) matchesName(pattern string) bool {
	if repo, any := strings.CutSuffix(pattern, anyTag); any {
		return repo == r.Repository
	}
	if r.Tag == "" {
		return strings.HasPrefix(pattern, r.Repository+":") || strings.HasPrefix(pattern, r.Repository+"@")
	}
	return pattern == r.Repository+":"+r.Tag
}

// tagOf parses a reference that must have a tag.
func tagOf(ref string) (*name.Tag, error) {
	t, err := name.NewTag(ref)
	return &t, err
}
