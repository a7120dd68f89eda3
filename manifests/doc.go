// Package manifests sets ipFamilyPolicy on the Services of a repository's YAML and
// JSON files, so that what a cluster is made from says what the migration made of it.
//
// An edit inserts the key and nothing else: every other byte of the file (comments,
// order, line ends, quoting, anchors) stays. Each edit is proven before it
// counts: the file is parsed again with it and must hold the same documents
// plus the one key on each edited Service. An edit that cannot be proven is not made;
// the Service is listed with what to set by hand, as are templates, generated
// and encrypted files. What kustomizations set by the component that this package
// writes counts as set.
//
// The rules by which a Service is eligible are those of package cluster for the Services of
// a living cluster, as far as a manifest can tell. This package reads and writes files
// alone: it knows no cluster.
package manifests
