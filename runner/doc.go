// Package runner performs a run: steps in a fixed order, each a list of actions
// on a target. It knows the order and the memory of a run and nothing of what
// the actions do; it imports no other package of this module.
//
// # Model
//
// A [Step] computes its actions when its turn comes, from what earlier actions
// recorded. An [Action] does one thing to one [Target] and can say how to find
// out from reality whether that thing is done already.
//
// The [Journal] is the run's only memory. Every record is on disk before the
// run goes on: begin (what the run is bound to), confirmed (a person agreed at
// a [Gate]), intent, then done or failed for each action, complete or
// checkpoint at a step's end, finished. Each record is true by itself when it
// is written, so a record that reached the disk although its writer died, or
// was told otherwise, does no harm.
//
// Only completed work is recorded as done. Whatever ends a run — a failure, a
// cancelled context, SIGKILL, a power cut — the next [Runner.Run] continues:
//
//   - a complete step is skipped without computing its actions;
//   - an action that is done in the journal is skipped;
//   - an intent without done is settled by asking reality: [Action.Done] says
//     yes, and it is recorded as found done; or no, or there is no Done (the
//     action is repeatable), and it is performed anew;
//   - an action without an intent never began.
//
// So an action with a truthful Done takes effect exactly once, one without
// at least once, and none before its intent is durable.
//
// [Runner.Rollback] goes the other way, to a checkpoint that the run has
// reached. Its records are rollback; for each step that began after the
// checkpoint, the last first, undoing and undone or undo failed for each of its
// undo actions, then reverted; rolled back at the end. What holds for actions
// holds for undo actions. A reverted step is as if it had never begun: its gate
// is asked and its actions are performed anew by the next Run, which refuses as
// long as a rollback is under way. A rollback is continued by calling it again,
// and may go on to an earlier checkpoint, never to a later one.
//
// A [Pauser] lets a person in between steps and actions: what is under way ends
// first, and stopping there leaves nothing open.
//
// [State] is derived from the records alone. Order is the order of sequence
// numbers; times are for people, and clocks may jump.
//
// A [Lock] admits one run at a time. Reading a journal needs none: opening
// changes nothing, and a torn tail is cut off by the next append only.
package runner
