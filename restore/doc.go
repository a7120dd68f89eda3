// Package restore brings back to a host what package backup took from it.
//
// It stands beside backup, above remote, and below steps. Its promise: nothing
// appears in its place before it was proven equal to what was taken, and
// nothing that is there already and differs is overwritten without being asked
// to. Every restore can be interrupted and begun again.
package restore
