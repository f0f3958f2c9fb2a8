//! Bytes of tokens become text that can be shown: whole UTF-8 characters, nothing of a stop string.
//!
//! A token may end inside a character or inside a stop string. What cannot be decided yet is held back and delivered,
//! or dropped, when it can. How the bytes were split never shows in the text. Knows no model and no tokenizer.

/// Text on its way out.
#[derive(Debug, Clone)]
pub struct TextStream {
    stops: Vec<String>,
    /// The start of a character whose end has not come; at most 3 bytes.
    bytes: Vec<u8>,
    /// Text that may be the start of a stop string.
    held: String,
    stopped: bool,
}

impl TextStream {
    /// A stream that ends at the first of `stops`; empty ones are ignored.
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Self {
        let stops = stops.iter().map(|s| s.as_ref().to_owned()).filter(|s| !s.is_empty()).collect();
        Self { stops, bytes: Vec::new(), held: String::new(), stopped: false }
    }

    /// Takes the bytes of one more token and gives the text that is certain now, often empty.
    ///
    /// Bytes that are no UTF-8 become U+FFFD, as `String::from_utf8_lossy` does it. Of several stop strings the one
    /// that is complete first counts, the longest of those that end together. After a stop string nothing comes.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        if self.stopped {
            return String::new();
        }
        self.bytes.extend_from_slice(bytes);
        self.decode_whole_characters();
        if let Some(start) = self.first_stop() {
            self.stopped = true;
            self.bytes.clear();
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let certain = self.held.len() - self.longest_stop_prefix_at_end();
        self.held.drain(..certain).collect()
    }

    /// Whether a stop string was met.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// The text that was held back; half a character becomes U+FFFD.
    pub fn finish(mut self) -> String {
        self.held.push_str(&String::from_utf8_lossy(&self.bytes));
        self.held
    }

    /// Moves all bytes but an unfinished character at the end into `held`.
    fn decode_whole_characters(&mut self) {
        let mut from = 0;
        loop {
            let rest = &self.bytes[from..];
            let error = match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.held.push_str(text);
                    from = self.bytes.len();
                    break;
                }
                Err(error) => error,
            };
            let (valid, after) = rest.split_at(error.valid_up_to());
            self.held.push_str(&String::from_utf8_lossy(valid));
            from += valid.len();
            match error.error_len() {
                Some(wrong) => {
                    self.held.push(char::REPLACEMENT_CHARACTER);
                    from += wrong;
                }
                None => {
                    debug_assert!(after.len() < 4);
                    break;
                }
            }
        }
        self.bytes.drain(..from);
    }

    /// Where the stop string begins that is complete first, if one is.
    fn first_stop(&self) -> Option<usize> {
        let found = |stop: &String| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start));
        self.stops.iter().filter_map(found).min().map(|(_, start)| start)
    }

    /// How many bytes at the end of `held` could be the beginning of a stop string.
    fn longest_stop_prefix_at_end(&self) -> usize {
        let at_end = |stop: &String| {
            let prefixes = stop.char_indices().map(|(len, _)| len).rev();
            prefixes.filter(|len| *len > 0).find(|len| self.held.ends_with(&stop[..*len])).unwrap_or(0)
        };
        self.stops.iter().map(at_end).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    use super::*;

    /// Pushes `bytes` in pieces that end at `cuts`; gives everything delivered, and whether it stopped.
    fn deliver(bytes: &[u8], cuts: &[usize], stops: &[&str]) -> (String, bool) {
        let mut stream = TextStream::new(stops);
        let mut text = String::new();
        let mut from = 0;
        for &to in cuts.iter().chain([&bytes.len()]) {
            text.push_str(&stream.push(&bytes[from..to]));
            from = to;
        }
        let stopped = stream.stopped();
        text.push_str(&stream.finish());
        (text, stopped)
    }

    /// The plain model: all bytes at once, then the occurrence of a stop string that ends first.
    fn expected(bytes: &[u8], stops: &[&str]) -> (String, bool) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        for end in 0..=text.len() {
            let starts = stops.iter().filter(|s| text.as_bytes()[..end].ends_with(s.as_bytes())).map(|s| end - s.len());
            if let Some(start) = starts.min() {
                return (text[..start].to_owned(), true);
            }
        }
        (text, false)
    }

    #[test]
    fn any_split_of_any_bytes_gives_the_text_before_the_first_stop() {
        let parts: [&[u8]; 9] =
            [b"a", b"b", "ä".as_bytes(), "€".as_bytes(), "🦜".as_bytes(), b"\xff", b"\xe2\x82", b"<|", b"|>"];
        let stops = [vec![], vec!["b"], vec!["ab", "b<|"], vec!["aab", "ab"], vec!["€a", "<||>"], vec!["🦜🦜"]];
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        for round in 0..4000 {
            let bytes: Vec<u8> =
                (0..rng.next_u32() % 12).flat_map(|_| parts[rng.next_u32() as usize % parts.len()].to_vec()).collect();
            let cuts: Vec<usize> = (1..bytes.len()).filter(|_| rng.next_u32() % 2 == 0).collect();
            let stops = &stops[round % stops.len()];
            assert_eq!(deliver(&bytes, &cuts, stops), expected(&bytes, stops), "{bytes:?} at {cuts:?}, {stops:?}");
        }
    }

    #[test]
    fn every_piece_is_whole_and_early() {
        let mut stream = TextStream::new(&["END"]);
        assert_eq!(stream.push(b"I say E"), "I say ");
        assert_eq!(stream.push(b"N"), "");
        assert_eq!(stream.push(b"e "), "ENe ", "not the stop string after all");
        assert_eq!(stream.push(&"€".as_bytes()[..2]), "");
        assert_eq!(stream.push(&"€".as_bytes()[2..]), "€");
        assert_eq!(stream.push(b"so EEND and more"), "so E");
        assert!(stream.stopped());
        assert_eq!(stream.push(b"more"), "");
        assert_eq!(stream.finish(), "");
    }
}
