# 090_readme.pl
#   The README's SQL runs from top to bottom in a fresh database, and prints what
#   the README says it prints.
#
# A ```sql block is what a reader pastes into psql; the ```text block right after
# it, if there is one, is what psql answers. A block without one has to succeed
# all the same. Blocks in other languages are not run. Ids and times are masked
# on both sides, and runs of blanks and dashes squeezed, since their length
# follows the columns' width.

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Every block runs a second after the one before, on the day when the outputs in
# the README were taken: so no run meets the turn of a month, and rows keep
# their order.
my $day = '2026-11-24';

my $readme = ($ENV{KAVACH_SRC} // dirname(abs_path(__FILE__)) . '/../..') . '/README.md';

# The blocks of a Markdown file: line number, SQL, expected output (or undef).
sub sql_blocks
{
	my @lines = split /\n/, slurp_file(shift);
	my @blocks;

	for (my $i = 0; $i < @lines; $i++)
	{
		my ($language) = $lines[$i] =~ /^```(\w+)$/ or next;
		my ($start, @body) = ($i + 1);
		push @body, $lines[$i] while ++$i < @lines && $lines[$i] ne '```';

		if ($language eq 'sql')
		{
			push @blocks, { line => $start, end => $i + 1, sql => join("\n", @body, '') };
		}
		elsif ($language eq 'text' && @blocks && $blocks[-1]{end} == $start - 1)
		{
			$blocks[-1]{output} = join("\n", @body, '');
		}
	}
	return @blocks;
}

sub masked
{
	my $text = shift;

	$text =~ s/\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b/<uuid>/g;
	$text =~ s/\b(agt|pol)_[0-9a-f]{32}\b/$1_<id>/g;
	$text =~ s/\b\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d(:?\d\d)?)?)?/<time>/g;
	$text =~ s/-{3,}/---/g;
	$text =~ s/[ \t]+/ /g;
	$text =~ s/ $//mg;
	$text =~ s/\n+\z/\n/;
	return $text;
}

my $node = PostgreSQL::Test::Cluster->new('readme');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\ntimezone = 'UTC'\n");
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION kavach');

# Files that the README writes with \copy belong to a folder that is thrown away.
chdir(PostgreSQL::Test::Utils::tempdir()) or die "chdir: $!";

my $seconds = 0;
my @blocks = sql_blocks($readme);
ok(@blocks > 10, 'the README has SQL blocks');

for my $block (@blocks)
{
	my $output;
	local $ENV{PGOPTIONS} = sprintf '-c kavach.clock=%sT09:%02d:%02dZ', $day, $seconds / 60, $seconds % 60;
	$seconds++;

	my $ok = IPC::Run::run(
		[
			$node->installed_command('psql'), '-X', '-v', 'ON_ERROR_STOP=1',
			'-P', 'format=wrapped', '-P', 'columns=96', '-d', $node->connstr('postgres')
		],
		'<', \$block->{sql}, '>', \$output, '2>&1');
	ok($ok, "README line $block->{line} runs") or diag $output;
	is(masked($output), masked($block->{output}), "README line $block->{line} prints what it says")
	  if defined $block->{output};
}

$node->stop;
done_testing();
