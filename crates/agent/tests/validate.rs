//! `redis-allocator validate`, as a user runs it: every error of every file, with its place and what is allowed.

use std::{fs, path::Path};

use assert_cmd::Command;
use rstest::rstest;
use tempfile::TempDir;

const HEAD: &str = "apiVersion: redis-allocator.dev/v1alpha1\nkind: ResourcePool\nmetadata: {name: gpus}\n";

/// Exit code, standard output and standard error.
fn validate(paths: &[&Path]) -> (i32, String, String) {
    let output = Command::cargo_bin("redis-allocator").unwrap().arg("validate").args(paths).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn dir(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (file, content) in files {
        fs::write(dir.path().join(file), content).unwrap();
    }
    dir
}

#[test]
fn what_is_fine_is_summed_up() {
    let dir = dir(&[("a.yaml", format!("{HEAD}spec: {{}}\n").as_bytes()), ("b.yaml", b"# nothing\n")]);
    let (code, out, errors) = validate(&[dir.path()]);
    assert_eq!((code, out.as_str(), errors.as_str()), (0, "2 files, 1 object: all fine\n", ""));
}

#[test]
fn the_shipped_examples_are_fine() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/pools");
    let (code, out, errors) = validate(&[&examples]);
    assert!(code == 0 && out.contains("all fine"), "{errors}");
}

#[test]
fn every_error_of_every_file_comes_out_at_once() {
    let bad = format!("{HEAD}spec:\n  oder: Random\n  cooldown: soon\n  maxShrinkPercent: 101\n");
    let dir = dir(&[("a.yaml", bad.as_bytes()), ("b.yaml", b"a: ["), ("c.yaml", b"kind: Pod\n")]);
    let (code, _, errors) = validate(&[dir.path()]);
    assert_eq!(code, 1);
    for line in [
        "a.yaml:5:3: spec.oder: found an unknown field",
        "a.yaml:6:13: spec.cooldown: found \"soon\", allowed is",
        "a.yaml:7:21: spec.maxShrinkPercent: found 101, allowed is",
        "b.yaml:1:4: not valid YAML",
        "c.yaml:1:1: apiVersion: found nothing, allowed is redis-allocator.dev/v1alpha1",
        "did you mean order?",
        "3 files: 5 errors",
    ] {
        assert!(errors.contains(line), "{line} in:\n{errors}");
    }
    assert!(errors.contains("  cooldown: soon"), "the source line is shown:\n{errors}");
}

#[rstest]
#[case::malformed(b"a: {b: 1".to_vec(), ":1:4: not valid YAML")]
#[case::tab_in_indentation(b"a:\n\tb: 1\n".to_vec(), ":2:")]
#[case::unknown_kind(b"apiVersion: redis-allocator.dev/v1alpha1\nkind: Lock\n".to_vec(), ":2:7: kind: found \"Lock\", allowed is ResourcePool or SoftBinding")]
#[case::shared_mode(format!("{HEAD}spec: {{mode: Both}}").into_bytes(), ":4:14: spec.mode: found \"Both\", allowed is")]
#[case::priority(format!("{HEAD}spec: {{resources: [{{name: a, priority: 1001}}]}}").into_bytes(), "found 1001, allowed is")]
#[case::negative(format!("{HEAD}spec: {{maxShrinkPercent: -1}}").into_bytes(), "found -1, allowed is")]
#[case::a_boolean_that_is_none(format!("{HEAD}spec: {{suspend: no}}").into_bytes(), "spec.suspend: found \"no\", allowed is")]
#[case::a_billion(format!("{HEAD}spec: {{ranges: [{{name: r, template: 'x{{}}', from: 0, to: 1000000000}}]}}").into_bytes(), "1,000,000")]
#[case::a_resource_twice(format!("{HEAD}spec: {{resources: [{{name: a}}, {{name: a}}]}}").into_bytes(), "spec.resources[1]")]
#[case::a_range_that_overlaps(format!("{HEAD}spec: {{resources: [{{name: x3}}], ranges: [{{name: r, template: 'x{{}}', from: 1, to: 5}}]}}").into_bytes(), "x3")]
#[case::a_key_twice(b"a: 1\nb: 2\na: 3\n".to_vec(), ":3:1: the key \"a\" stands twice")]
#[case::not_utf_8(b"a: \xff\n".to_vec(), ":1:4: found the byte 0xff at offset 3, allowed is UTF-8")]
#[case::brackets("[".repeat(20_000).into_bytes(), "allowed are 32 levels")]
#[case::nested_blocks(format!("{}1", "- ".repeat(20_000)).into_bytes(), "allowed are 32 levels")]
#[case::alias_bomb(bomb(), "aliases (*name) expand to too much")]
#[case::no_yaml_at_all((0..=255).collect(), "allowed is")]
fn bad_input_is_named_and_never_a_crash(#[case] text: Vec<u8>, #[case] words: &str) {
    let dir = dir(&[("bad.yaml", &text)]);
    let (code, _, errors) = validate(&[&dir.path().join("bad.yaml")]);
    assert_eq!(code, 1, "{errors}");
    assert!(errors.contains("bad.yaml") && errors.contains(words), "{words} in:\n{errors}");
}

fn bomb() -> Vec<u8> {
    let level = |level: usize| format!("a{level}: &a{level} [{}]", format!("*a{}, ", level - 1).repeat(10));
    let first = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]".to_owned();
    let lines: Vec<_> = std::iter::once(first).chain((1..12).map(level)).collect();
    lines.join("\n").into_bytes()
}

#[test]
fn what_can_not_be_read_is_named() {
    let dir = dir(&[]);
    fs::File::create(dir.path().join("large.yaml")).unwrap().set_len(100 << 20).unwrap();
    std::os::unix::fs::symlink("loop.yaml", dir.path().join("loop.yaml")).unwrap();
    std::os::unix::fs::symlink(".", dir.path().join("again")).unwrap();
    // A regular file that nobody can read, whoever runs this test.
    std::os::unix::fs::symlink("/proc/self/mem", dir.path().join("unreadable.yaml")).unwrap();
    let (code, _, errors) = validate(&[dir.path(), Path::new("/nowhere/at/all.yaml")]);
    assert_eq!(code, 1);
    for line in [
        "large.yaml: found a file of 100 MiB, allowed are 16 MiB",
        "loop.yaml: found a loop of symbolic links",
        "again: found a symbolic link to a directory that contains it",
        "unreadable.yaml: reading failed",
        "/nowhere/at/all.yaml: found nothing there",
        "5 files: 5 errors",
    ] {
        assert!(errors.contains(line), "{line} in:\n{errors}");
    }
}

#[test]
fn what_two_files_contradict_in_names_both() {
    let binding = |name: &str| {
        format!(
            "apiVersion: redis-allocator.dev/v1alpha1\nkind: SoftBinding\nmetadata: {{name: {name}}}\nspec: {{poolRef: \
             {{name: gpus}}, resourceName: gpu-0, policy: Required}}\n"
        )
    };
    let pool = format!("{HEAD}spec: {{}}\n");
    let dir = dir(&[
        ("a.yaml", pool.as_bytes()),
        ("b.yaml", pool.as_bytes()),
        ("x.yaml", binding("x").as_bytes()),
        ("y.yaml", binding("y").as_bytes()),
    ]);
    let (code, _, errors) = validate(&[dir.path()]);
    assert_eq!(code, 1);
    let twice = errors.find("ResourcePool default/gpus is declared twice").expect(&errors);
    assert!(errors[..twice].contains("b.yaml:1:1") && errors[twice..].contains("a.yaml:1:1"), "{errors}");
    let rival = errors.find("which SoftBinding x reserves already").expect(&errors);
    assert!(errors[..rival].contains("y.yaml:1:1") && errors[rival..].contains("x.yaml:1:1"), "{errors}");
}

#[test]
fn no_path_is_a_wrong_command_line() {
    let (code, _, errors) = validate(&[]);
    assert!(code == 2 && errors.contains("Usage"), "{errors}");
}
