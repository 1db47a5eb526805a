//! The beanstalkd wire protocol without IO: values, commands, replies, limits, and the exact bodies of
//! `stats`.
//!
//! - [`Decoder`] cuts whole requests out of what a server received; [`parse_line`] is the pure parser behind
//!   it.
//! - [`Reply`] is what a server answers; [`ReplyDecoder`] is how a client reads it.
//! - [`stats`] holds the YAML bodies.
//!
//! The rules are those of beanstalkd 1.13: each edge was probed on 1.12, and where 1.13 or this crate differs
//! from that, the scripts under `tests/scripts` say so. Where a rule looks odd it is beanstalkd's, and clients
//! depend on it.

mod client;
mod codec;
mod command;
mod decimal;
mod decoder;
mod parse;
mod reply;
pub mod stats;
mod values;

pub use client::{ClientReply, ReplyDecoder, ReplyError, encode_command, encode_put, encode_put_once};
pub use codec::{ClientCodec, OwnedRequest, Put, ServerCodec};
pub use command::{BadRequest, Command, PutHeader, Request};
pub use decoder::Decoder;
pub use parse::{Line, parse_line};
pub use reply::{Reply, encode_found_header, encode_reserved_header};
pub use values::{
    DEFAULT_MAX_JOB_SIZE, JobId, MAX_JOB_SIZE_LIMIT, MAX_LINE, MAX_PUT_KEY, MAX_TUBE_NAME, Priority, PutKey,
    Tube, URGENT_BELOW,
};
