//! Where one RESP message ends and the next begins, in a stream that arrives in pieces. It must not know what the
//! messages mean, nor the network.

/// Finds the ends of messages (RESP2 and RESP3, requests and replies alike), and scans no finished value again.
#[derive(Debug)]
pub(crate) struct Scanner {
    buffer: Vec<u8>,
    /// Everything before this belongs to the message being scanned.
    position: usize,
    /// Values that still have to come before the message is complete.
    pending: u64,
}

impl Default for Scanner {
    fn default() -> Self {
        Self { buffer: Vec::new(), position: 0, pending: 1 }
    }
}

impl Scanner {
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next complete message out of the buffer.
    pub(crate) fn next_message(&mut self) -> Option<Vec<u8>> {
        while self.pending > 0 {
            let rest = self.buffer.get(self.position..)?;
            let line = rest.windows(2).position(|pair| pair == b"\r\n")?;
            let (&kind, number) = rest[..line].split_first().unwrap_or((&b'+', b""));
            let number = std::str::from_utf8(number).ok().and_then(|digits| digits.parse::<i64>().ok());
            // -1 is a null of RESP2: a length without content.
            let size = u64::try_from(number.unwrap_or(0)).unwrap_or(0);
            let (body, children) = match kind {
                b'$' | b'=' | b'!' if number.is_some_and(|number| number >= 0) => (usize::try_from(size).ok()? + 2, 0),
                b'*' | b'~' | b'>' => (0, size),
                b'%' => (0, size.saturating_mul(2)),
                // An attribute precedes the value it describes and is none itself.
                b'|' => (0, size.saturating_mul(2).saturating_add(1)),
                // Everything else is its line: +, -, :, and the rest of RESP3, and also inline commands.
                _ => (0, 0),
            };
            if rest.len() < line + 2 + body {
                return None;
            }
            self.position += line + 2 + body;
            self.pending = self.pending - 1 + children;
        }
        let rest = self.buffer.split_off(self.position);
        self.position = 0;
        self.pending = 1;
        Some(std::mem::replace(&mut self.buffer, rest))
    }
}

/// The arguments of a request, the command first. A request that is no array of bulk strings yields what was read.
pub(crate) fn arguments(request: &[u8]) -> Vec<Vec<u8>> {
    let mut arguments = Vec::new();
    let mut rest = request;
    while let Some(line) = rest.windows(2).position(|pair| pair == b"\r\n") {
        let (header, tail) = (&rest[..line], &rest[line + 2..]);
        rest = tail;
        let Some(length) = header.strip_prefix(b"$") else { continue };
        let length = std::str::from_utf8(length).ok().and_then(|digits| digits.parse().ok());
        let Some((argument, tail)) = length.and_then(|length| rest.split_at_checked(length)) else { break };
        arguments.push(argument.to_vec());
        rest = tail.get(2..).unwrap_or_default();
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: [&str; 11] = [
        "+OK\r\n",
        "-ERR no\r\n",
        ":42\r\n",
        "$-1\r\n",
        "*-1\r\n",
        "$4\r\na\r\nb\r\n",
        "*2\r\n*1\r\n:1\r\n$0\r\n\r\n",
        "%1\r\n+k\r\n*0\r\n",
        ">2\r\n+message\r\n$1\r\nx\r\n",
        "|1\r\n+ttl\r\n:3\r\n*1\r\n_\r\n",
        "=7\r\ntxt:abc\r\n",
    ];

    #[test]
    fn messages_are_found_wherever_the_stream_is_cut() {
        let stream = MESSAGES.concat();
        for piece in 1..=stream.len() {
            let mut scanner = Scanner::default();
            let mut found = Vec::new();
            for bytes in stream.as_bytes().chunks(piece) {
                scanner.feed(bytes);
                while let Some(message) = scanner.next_message() {
                    found.push(String::from_utf8(message).unwrap());
                }
            }
            assert_eq!(found, MESSAGES, "in pieces of {piece}");
        }
    }

    #[test]
    fn arguments_are_binary_safe() {
        let request = b"*3\r\n$3\r\nSET\r\n$3\r\n\r\n$\r\n$0\r\n\r\n";
        assert_eq!(arguments(request), [b"SET".to_vec(), b"\r\n$".to_vec(), b"".to_vec()]);
    }
}
