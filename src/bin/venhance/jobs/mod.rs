// SPDX-License-Identifier: MIT OR Apache-2.0
//! One video in pieces, which many machines can make, and many videos with one model load.
//!
//! ```text
//! plan    IN ─► dry run ─► job file: settings, pieces by frame number
//! piece   IN ─► as a resumed run ─► piece: a partial file without sound, and its record
//! join    pieces ─► partial file ─► as the end of a run ─► OUT
//! ```
//!
//! A piece starts as `--resume` does, from a [`ResumePoint`](crate::partial::ResumePoint) that the dry run has found: the
//! input is decoded from its start, which is exact in every format; frames before the point are skipped; and the model
//! gets as many frames before the first output frame as that needs. It ends after a number of output frames: the model
//! gets as much input after the last one as it asks for, and never knows that the piece ends. So the encoder gets the same
//! frames as in a run over the whole video. An interrupted piece continues as an interrupted run does.
//!
//! A job has a folder of pieces that is named by its id, and is finished when the output with the recorded digest is
//! there. So nothing depends on what other jobs, runs or users leave beside the output.
//!
//! A piece's clusters have the times of the whole video, so that a join is a concatenation.
//!
//! | module | |
//! |---|---|
//! | `job` | the job file |
//! | `boundaries` | where pieces begin |
//! | `plan`, `piece`, `join`, `status` | the commands |
//! | `store` | the files of the pieces |

mod boundaries;
mod job;
mod join;
mod piece;
mod plan;
mod status;
mod store;

pub use join::join;
pub use piece::make_pieces;
pub use plan::plan;
pub use status::status;
