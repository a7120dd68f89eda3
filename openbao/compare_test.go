package openbao

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// The stand-in, which the other comparisons are made with, does not have the setting.
func TestCompareMetadataCAS(t *testing.T) {
	var c compared
	with := &Metadata{KVConfig: KVConfig{MetadataCASRequired: true}}
	c.metadata(with, with)
	require.Empty(t, c.differences)
	c.metadata(&Metadata{}, with)
	require.Equal(t, []string{"its metadata_cas_required is false and was true"}, c.differences)
}
