//! The Rust snippets of the documentation, compiled as they stand. Nothing of this is in the built crate.

macro_rules! pages {
    ($($page:ident = $path:literal,)*) => {
        $(
            #[doc = include_str!($path)]
            struct $page;
        )*
    };
}

pages! {
    Readme = "../../README.md",
    Concepts = "../../docs/concepts.md",
    Library = "../../docs/library.md",
    Operations = "../../docs/operations.md",
    FromPython = "../../docs/from-python.md",
    Sessions = "../../docs/sessions.md",
    Waiting = "../../docs/waiting.md",
}
