//! Paths as policies see them.

/// A request's path in the one form that everybody reads alike, if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plain {
    /// Begins with `/`; no empty, `.` or `..` segment, nothing percent-encoded that need not be.
    Path(String),
    /// Servers differ in what they make of it.
    Doubtful,
}

/// Decodes what needs no encoding, merges slashes, resolves dots.
///
/// Doubtful are: an encoded slash, backslash, percent sign or control character, since some servers decode it, or decode it
/// twice; a `;`, where some cut the segment; a backslash, which some take for a slash; a segment that ends with a dot or a space,
/// which some file systems cut off; `..` above the root; bytes outside ASCII as they are; and what does not begin with `/`.
pub(super) fn plain(path: &str) -> Plain {
    match segments(path) {
        Some(segments) => Plain::Path(segments),
        None => Plain::Doubtful,
    }
}

fn segments(path: &str) -> Option<String> {
    let decoded = decode(path.strip_prefix('/')?)?;
    let mut kept: Vec<&str> = Vec::new();
    let mut directory = true;
    for segment in decoded.split('/') {
        directory = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop()?;
            }
            segment if segment.ends_with(['.', ' ']) => return None,
            segment => kept.push(segment),
        }
    }
    let mut plain = String::with_capacity(decoded.len() + 2);
    for segment in &kept {
        plain.push('/');
        plain.push_str(segment);
    }
    if directory {
        plain.push('/');
    }
    Some(plain)
}

/// Each `%xx` becomes its character when that is printable ASCII without a meaning of its own; others stay encoded, in upper
/// case, as a path outside ASCII has to be.
fn decode(path: &str) -> Option<String> {
    let mut decoded = String::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
                match high << 4 | low {
                    b'/' | b'\\' | b'%' | b';' | b'?' | b'#' => return None,
                    byte @ 0x20..=0x7e => decoded.push(char::from(byte)),
                    byte @ 0x80..=0xff => decoded.push_str(&format!("%{byte:02X}")),
                    _ => return None,
                }
            }
            b'\\' | b';' => return None,
            0x21..=0x7e => decoded.push(char::from(byte)),
            _ => return None,
        }
    }
    Some(decoded)
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_a_path_is_one_or_doubtful() {
        let cases = [
            ("/", "/"),
            ("/admin", "/admin"),
            ("/admin/", "/admin/"),
            ("//admin", "/admin"),
            ("/./admin", "/admin"),
            ("/a/../admin", "/admin"),
            ("/a/b/../../admin", "/admin"),
            ("/%61dmin", "/admin"),
            ("/a/%2e%2E/admin", "/admin"),
            ("/%2e/admin", "/admin"),
            ("/admin/.", "/admin/"),
            ("/admin/x/..", "/admin/"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/Admin", "/Admin"),
        ];
        for (written, read) in cases {
            assert_eq!(plain(written), Plain::Path(read.to_owned()), "{written}");
        }
        let doubtful = [
            "",
            "*",
            "admin",
            "/..",
            "/../admin",
            "/a/../../admin",
            "/a%2fadmin",
            "/a%2Fadmin",
            "/a%5cadmin",
            "/a\\admin",
            "/%2561dmin",
            "/admin;x=1",
            "/admin%3bx",
            "/admin.",
            "/admin%20",
            "/admin%00",
            "/%",
            "/%4",
            "/%zz",
            "/admin%0a",
            "/adm\u{131}n",
            "/admin./x",
            "/admin%3fx",
            "/admin%23x",
        ];
        for written in doubtful {
            assert_eq!(plain(written), Plain::Doubtful, "{written}");
        }
    }
}
