# soak.pl: a short part of the soak test (test/soak/run): stress, crashes, few counters.
use strict;
use warnings;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

$ENV{INSTALLED} = 1;
$ENV{KINDS} = 'mixed stop kill unit stop';
$ENV{ROOMS} = '65536 175 75';    # with fewer, a busy machine may admit nothing in a round that is this short
my ($rounds, $seed, $seconds) = (5, 20, 3);
my $passed = IPC::Run::run([ "$ENV{KAVACH_SRC}/test/soak/run", $rounds, $seed, $seconds ], '>', \my $out, '2>', \my $err);
like($out, qr/round $_ \(.*\): ok/, "round $_ of $rounds") for 1 .. $rounds;
ok($passed, 'limits, acknowledged calls and counters hold') or diag($out, $err);
done_testing();
