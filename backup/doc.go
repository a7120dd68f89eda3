// Package backup writes and checks the backup set: the directory on the
// laptop that holds everything needed to bring a cluster back.
//
// It stands above remote (whence the data comes) and below steps (which says
// what to take, and when). Its way back is package restore. It owns
//
//   - the [Set]: artifacts encrypted with age, and a manifest with the sizes and
//     SHA-256 sums of all of them, from which a single flipped bit is found;
//   - volumes: a full pass while workloads run ([Take]) and a delta once they
//     are quiet ([Delta]), streamed from the host and never held in memory or,
//     unencrypted, on the laptop's disk;
//   - trees and files of the host ([Tree], [HostFile]) and K3s's SQLite
//     datastore ([Datastore]).
//
// An artifact exists when the manifest says so, and the manifest says so only
// once the artifact is complete and durable.
package backup
