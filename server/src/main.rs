//! The `beanpole` binary.

fn main() -> std::process::ExitCode {
    beanpole::main()
}
