//! What a container's view of its files gives and refuses.

use super::*;
use proptest::prelude::*;

fn file(text: &str) -> Entry {
    Entry::File(text.as_bytes().to_vec().into())
}

fn directory<const N: usize>(entries: [(&str, Entry); N]) -> Entry {
    Entry::Directory(entries.into_iter().map(|(name, entry)| (name.to_owned(), entry)).collect())
}

fn at(volume: &str, path: &str, sub_path: &str) -> Mount {
    Mount { volume: volume.into(), path: path.into(), sub_path: sub_path.into(), read_only: false }
}

fn text(files: &Files<'_>, path: &str) -> Result<String, FileError> {
    files.read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// A layer, a volume of the host with links in it, and one for writing.
fn volumes() -> Vec<Volume> {
    let host = directory([
        ("index.html", file("index")),
        ("sub", directory([("page", file("page")), ("up", Entry::Link("../index.html".into()))])),
        ("out", Entry::Link("../../../../etc/passwd".into())),
        ("absolute", Entry::Link("/data/kept".into())),
        ("round", Entry::Link("round".into())),
    ]);
    vec![Volume::layer(), Volume::read_only("html", host), Volume::empty("data", 100)]
}

#[test]
fn links_and_dots_end_in_the_containers_own_view() {
    let mut volumes = volumes();
    let mounts = [at("html", "/usr/share/html", ""), at("data", "/data", "")];
    let mounts = mount("c", 0, &mounts, &mut volumes).unwrap();
    let mut files = Files { volumes: &mut volumes, mounts: &mounts };
    files.write("/data/kept", b"kept", false).unwrap();
    for (path, found) in [
        ("/usr/share/html/index.html", Ok("index")),
        ("/usr/share/html/sub/up", Ok("index")),
        ("/usr/share/html/sub/../../html/./sub//page", Ok("page")),
        ("/usr/share/html/../../../../../data/kept", Ok("kept")),
        ("/usr/share/html/absolute", Ok("kept")),
        ("/usr/share/html/out", Err(FileError::NotFound)),
        ("/usr/share/html/round", Err(FileError::TooManyLinks)),
        ("/usr/share/html/index.html/x", Err(FileError::NotADirectory)),
        ("/usr/share/html", Err(FileError::IsADirectory)),
        ("/usr/share", Err(FileError::IsADirectory)),
        ("/usr/other", Err(FileError::NotFound)),
        ("/etc/passwd", Err(FileError::NotFound)),
    ] {
        assert_eq!(text(&files, path), found.map(String::from), "{path}");
    }
    assert_eq!(files.list("/").unwrap(), ["data", "usr"]);
    assert_eq!(files.list("/usr/share/").unwrap(), ["html"]);
}

#[test]
fn what_is_read_only_full_or_a_mount_point_stays_as_it_is() {
    let mut volumes = volumes();
    let mounts = [
        at("html", "/html", ""),
        at("data", "/data", ""),
        Mount { read_only: true, ..at("data", "/same", "") },
    ];
    let mounts = mount("c", 0, &mounts, &mut volumes).unwrap();
    let mut files = Files { volumes: &mut volumes, mounts: &mounts };
    assert_eq!(files.write("/html/index.html", b"x", false), Err(FileError::ReadOnly));
    assert_eq!(files.remove("/html/index.html", false), Err(FileError::ReadOnly));
    assert_eq!(files.write("/same/a", b"x", false), Err(FileError::ReadOnly));
    assert_eq!(files.remove("/data", true), Err(FileError::Busy));
    assert_eq!(files.write("/data", b"x", false), Err(FileError::IsADirectory));

    files.write("/data/a", &[b'a'; 60], false).unwrap();
    files.write("/data/a", &[b'a'; 40], true).unwrap();
    assert_eq!(files.write("/data/b", b"b", false), Err(FileError::NoSpace));
    assert_eq!(files.write("/data/a", b"a", true), Err(FileError::NoSpace));
    assert_eq!(text(&files, "/same/a").unwrap().len(), 100, "one volume, two places");
    files.remove("/data/a", false).unwrap();
    files.write("/data/b", &[b'b'; 100], false).unwrap();

    files.make_directory("/tmp/a/b", true).unwrap();
    assert_eq!(files.make_directory("/tmp/a", false), Err(FileError::Exists));
    assert_eq!(files.make_directory("/no/a", false), Err(FileError::NotFound));
    files.write("/tmp/a/b/c", b"c", false).unwrap();
    assert_eq!(files.remove("/tmp/a", false), Err(FileError::IsADirectory));
    files.remove("/tmp/a", true).unwrap();
    assert_eq!(text(&files, "/tmp/a/b/c"), Err(FileError::NotFound));
}

/// Kubernetes, volumes, "Using subPath".
#[test]
fn a_sub_path_is_made_where_it_can_be_and_follows_no_link() {
    let mut volumes = volumes();
    let mounts = [at("data", "/a", "one/two"), at("html", "/page", "sub/page"), at("data", "/all", "")];
    let mounts = mount("c", 0, &mounts, &mut volumes).unwrap();
    let mut files = Files { volumes: &mut volumes, mounts: &mounts };
    files.write("/a/x", b"x", false).unwrap();
    assert_eq!(text(&files, "/all/one/two/x").unwrap(), "x");
    assert_eq!(text(&files, "/page").unwrap(), "page");
    assert_eq!(
        text(&files, "/a/../one"),
        Err(FileError::NotFound),
        "`..` is the container's, not the volume's"
    );
    for (volume, sub_path) in [("html", "none"), ("html", "out"), ("data", "../x"), ("none", "")] {
        assert!(mount("c", 0, &[at(volume, "/x", sub_path)], &mut volumes).is_err(), "{volume} {sub_path}");
    }
}

proptest! {
    /// Whatever a path says, it finds what its volumes hold or nothing.
    #[test]
    fn no_path_panics_or_leads_out(path in "(/|\\.\\.|\\.|html|sub|up|out|round|absolute|index.html|page){0,24}") {
        let mut volumes = volumes();
        let mounts = mount("c", 0, &[at("html", "/html", ""), at("data", "/html/data", "")], &mut volumes).unwrap();
        let mut files = Files { volumes: &mut volumes, mounts: &mounts };
        if let Ok(found) = text(&files, &path) {
            prop_assert!(["index", "page"].contains(&found.as_str()));
        }
        let _ = files.list(&path);
        let _ = files.make_directory(&path, true);
        let _ = files.write(&path, b"page", true);
        let _ = files.remove(&path, true);
        let octets: usize = files.volumes.iter().map(|volume| volume.entry(&[]).map_or(0, |entry| {
            fn sum(entry: &Entry) -> usize {
                match entry {
                    Entry::File(bytes) => bytes.len(),
                    Entry::Link(_) => 0,
                    Entry::Directory(names) => names.values().map(sum).sum(),
                }
            }
            sum(entry)
        })).sum();
        prop_assert!(octets <= 14);
    }
}
