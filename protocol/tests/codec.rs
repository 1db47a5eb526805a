//! The two codecs, talking to each other through byte buffers.

use beanpole_protocol::{
    BadRequest, ClientCodec, ClientReply, Command, JobId, OwnedRequest, Put, PutHeader, Reply, ServerCodec,
    Tube,
};
use bytes::{Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

#[test]
fn a_client_asks_and_a_server_answers() {
    let (mut client, mut server) = (ClientCodec::default(), ServerCodec::new(5));
    let mut asked = BytesMut::new();
    client.encode(Command::Watch(Tube::new(b"mail").unwrap()), &mut asked).unwrap();
    client.encode(Put { pri: 1, delay: 2, ttr: 0, body: b"hello" }, &mut asked).unwrap();
    client.encode(Put { pri: 1, delay: 2, ttr: 0, body: b"hello!" }, &mut asked).unwrap();
    client.encode(Command::Reserve, &mut asked).unwrap();

    let requests: Vec<OwnedRequest> = std::iter::from_fn(|| server.decode(&mut asked).unwrap()).collect();
    let header = PutHeader { pri: 1, delay: 2, ttr: 1, bytes: 5, key: None };
    assert_eq!(requests[0].command(), Some(Command::Watch(Tube::new(b"mail").unwrap())));
    assert_eq!(requests[1], OwnedRequest::Put(header, Bytes::from_static(b"hello\r\n")));
    assert_eq!(requests[2], OwnedRequest::Bad(BadRequest::JobTooBig));
    assert_eq!(requests[2].command(), None);
    assert_eq!(requests[3].command(), Some(Command::Reserve));
    assert_eq!(requests.len(), 4);

    let mut answered = BytesMut::new();
    server.encode(Reply::Watching(2), &mut answered).unwrap();
    server.encode(Reply::Reserved { id: JobId(1), data: b"hello" }, &mut answered).unwrap();
    assert_eq!(client.decode(&mut answered).unwrap(), Some(ClientReply::Watching(2)));
    let job = ClientReply::Reserved { id: JobId(1), data: Bytes::from_static(b"hello") };
    assert_eq!(client.decode(&mut answered).unwrap(), Some(job));
    assert_eq!(client.decode(&mut answered).unwrap(), None);

    let error = client.decode(&mut BytesMut::from(&b"HELLO\r\n"[..])).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
}
