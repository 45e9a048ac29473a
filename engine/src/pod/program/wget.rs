//! `wget`: one HTTP request, its body into a file.
//!
//! Its words are curl's in another order, and curl runs it. Invariant: it ends with 0 or 1. Depends on `curl`. Read first: wget(1).

use super::Find;
use super::curl::Curl;

/// Makes a curl that does what `wget` is asked: `-q`, `-O FILE`, `-P DIRECTORY`, `-T SECONDS`, `--spider`. Without `-O` the file has
/// the URL's last name, and must not be there yet.
///
/// # Errors
/// What is wrong with the words, and the exit code for that.
pub(super) fn new(words: &[String], find: &mut Find<'_>) -> Result<Curl, (String, i32)> {
    let mut curl_words = vec![String::from("-f")];
    let mut words = words.iter();
    let (mut file, mut directory, mut looks_only) = (None, String::new(), false);
    while let Some(word) = words.next() {
        let mut value =
            || words.next().cloned().ok_or_else(|| (format!("wget: option {word} needs a value"), 1));
        match word.as_str() {
            "-q" | "--quiet" => curl_words.push("-s".into()),
            "-O" | "--output-document" => file = Some(value()?),
            "-P" => directory = format!("{}/", value()?.trim_end_matches('/')),
            "--spider" => {
                looks_only = true;
                curl_words.push("-I".into());
            }
            "-T" => curl_words.extend(["-m".into(), value()?]),
            "-qO" => {
                curl_words.push("-s".into());
                file = Some(value()?);
            }
            long => {
                if let Some(seconds) = long.strip_prefix("--timeout=") {
                    curl_words.extend(["-m".into(), seconds.into()]);
                } else if let Some(name) = long.strip_prefix("--output-document=") {
                    file = Some(name.into());
                } else if let Some(name) = long.strip_prefix("-qO") {
                    curl_words.push("-s".into());
                    file = Some(name.into());
                } else if let Some(name) = long.strip_prefix("-O") {
                    file = Some(name.into());
                } else {
                    curl_words.push(word.clone());
                }
            }
        }
    }
    let curl = Curl::new(&curl_words, find).map_err(|(text, _)| (text.replacen("curl", "wget", 1), 1))?;
    Ok(curl.into_wget(file.as_deref(), &directory, looks_only))
}
