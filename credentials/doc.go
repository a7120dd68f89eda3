// Package credentials gets the secret values that a plan points to and never
// holds: from the environment, a file, a question, a command such as a password
// manager's, or a Kubernetes Secret.
//
// It stands above plans and below steps and cmd. A value lives in memory only;
// no error holds one.
package credentials
