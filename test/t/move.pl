# move.pl: the recipe of doc/operations.md that takes a database to another server by logical replication, while calls go
# on; the new one then goes on as the old one would have.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Copy;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my ($recipe) = slurp_file("$FindBin::RealBin/../../doc/operations.md") =~ /^## To another server while calls go on\n(.*?)^## /ms;
my @blocks = $recipe =~ /^```sql\n-- on the (.*?)^```/gms;
is(join(', ', map { /^(old|new) server/ } @blocks), 'old, new, old, new', 'the recipe is what this test follows');

my %node;
for my $name (qw(old new))
{
	$node{$name} = PostgreSQL::Test::Cluster->new($name);
	$node{$name}->init(allows_streaming => 'logical');
	$node{$name}->append_conf('postgresql.conf', $Copy::conf);
	$node{$name}->start;
}
Copy::fill($node{old});
$node{new}->safe_psql('postgres', 'CREATE DATABASE new; ALTER DATABASE new SET search_path = app; CREATE ROLE myapp LOGIN');
$node{new}->safe_psql('new', 'CREATE SCHEMA app');

# The statements of a block, with the names that things have here; answers of the last one.
my $connection = $node{old}->connstr . ' dbname=old';
sub follow
{
	my ($block) = @_;
	my ($server) = $block =~ /^(old|new)/;
	$block =~ s/^.*\n//;
	$block =~ s/host=old dbname=mydb/$connection/;
	$block =~ s/\bmydb\b/old/g;
	return $node{$server}->safe_psql($server, $block);
}

like(follow($blocks[0]), qr/^2026-01-31$/m, 'the first day of the ledger');
like(follow($blocks[1]), qr/^3$/m, 'its months are made');
$node{new}->poll_query_until('new', q{SELECT count(*) > 0 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel}) or die;

# Calls, changes and a new month go on meanwhile.
my $app = Session->new($node{old}, 'old');
is($app->query(q{SELECT code FROM kavach_authorize('agt_b', 'run', 'x:y', 0, request_id => 'r-move')}), 'allowed', 'a call while it is copied');
is($app->query(q{SELECT kavach_update_agent('agt_a', '{"name": "A"}')}), 't', 'a change');

my ($lsn) = follow($blocks[2]) =~ m,^([0-9A-F]+/[0-9A-F]+)\n[0-9A-F]+/[0-9A-F]+$,m;
is(eval { $app->query('SELECT 1') }, undef, 'who was connected has to come again');
my (undef, undef, $err) = $node{old}->psql('old', q{\set VERBOSITY sqlstate
	SELECT kavach_authorize('agt_b', 'run', 'x:y', 0)});
like($err, qr/25006/, 'and can write nothing');
$node{old}->poll_query_until('old', "SELECT confirmed_flush_lsn >= '$lsn' FROM pg_replication_slots WHERE slot_name = 'kavach_move'") or die;
is((split /\n/, follow($blocks[3]))[-1], $node{old}->safe_psql('old', 'SELECT count(*), sum(tokens_cost) FROM kavach.audit_log'), 'the new server has all of it');
is($node{old}->safe_psql('old', 'SELECT count(*) FROM pg_replication_slots'), '0', 'and has let go of the old one');

# As a comparison the old one may go on, too.
$node{old}->safe_psql('postgres', 'ALTER DATABASE old RESET default_transaction_read_only');
$node{old}->poll_query_until('old', q{SELECT to_regclass('kavach.audit_log_2026_03') IS NOT NULL FROM kavach.wake_worker()}) or die;
Copy::compare($node{old}, [ 'replication', $node{new}, 'new' ]);
is($node{new}->safe_psql('new', q{SELECT code FROM kavach_authorize('agt_b', 'run', 'x:y', 0, request_id => 'r-move')}), 'allowed', 'a retry of the last call');
is($node{new}->safe_psql('new', q{SELECT count(*) FROM kavach.ledger WHERE request_id = 'r-move'}), '1', 'is that call');
$_->stop for @node{qw(old new)};
done_testing();
