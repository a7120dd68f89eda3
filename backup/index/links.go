package index

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"math/bits"
)

// LinkGroups is a summary of which names are hard links of each other. Inode
// numbers do not survive a restore, the groups do. It is a sum over groups and so does
// not depend on their order, and takes no memory for however many there are.
type LinkGroups struct {
	Groups, Names int64
	sum           [4]uint64
}

// ReadLinkGroups reads records "path//inode" that are ordered by inode, then
// path, as Shell's list_links writes them.
func ReadLinkGroups(r io.Reader) (LinkGroups, error) {
	var g LinkGroups
	var inode string
	var group hash.Hash
	var names int64
	end := func() {
		// A file whose other names lie outside of the tree has none to lose.
		if names > 1 {
			g.add(group.Sum(nil))
			g.Groups++
			g.Names += names
		}
	}
	list := NewUnorderedReader(r)
	for {
		rec, err := list.Next()
		if err == io.EOF {
			end()
			return g, nil
		}
		if err != nil {
			return g, fmt.Errorf("reading the hard links: %w", err)
		}
		if group == nil || rec.Fields != inode {
			end()
			inode, group, names = rec.Fields, sha256.New(), 0
		}
		io.WriteString(group, rec.Path+"\x00")
		names++
	}
}

func (g *LinkGroups) add(sum []byte) {
	var carry uint64
	for i := range g.sum {
		g.sum[i], carry = bits.Add64(g.sum[i], binary.LittleEndian.Uint64(sum[8*i:]), carry)
	}
}

// String is equal for equal groups and of no other use.
func (g LinkGroups) String() string {
	return fmt.Sprintf("%d names in %d groups, %016x%016x%016x%016x", g.Names, g.Groups, g.sum[3], g.sum[2], g.sum[1], g.sum[0])
}
